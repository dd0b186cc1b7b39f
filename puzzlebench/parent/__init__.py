"""Parents: the model that blocks are taken from, opened by name, and the small one made on the spot."""
