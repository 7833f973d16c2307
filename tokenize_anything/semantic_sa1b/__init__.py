"""The concept space: which texts mean what, as vectors a model can be taught."""
