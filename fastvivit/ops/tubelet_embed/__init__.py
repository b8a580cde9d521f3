"""tubelet_embed: a strided 3-D convolution of the kept tubelets only."""
