"""The engine: canonical graphs, ops, rules, matching, rewriting, verification. It knows no model."""
