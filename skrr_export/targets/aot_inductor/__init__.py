"""AOTInductor: machine code compiled ahead of time, over the weights of the bundle."""
