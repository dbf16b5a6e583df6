"""How a mixture of experts is read off a graph: two products with the matrices of chosen experts, from the rows that go in to the sum that comes out."""
