"""HF spellings become ops. Each rule takes one way of writing something, or one step of it."""
