"""How attention is read off a graph: the scores' way to the softmax, the mask by evaluation, the heads by their views."""
