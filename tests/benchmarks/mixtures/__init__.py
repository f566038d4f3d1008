"""Does the search for a mixture predict? Full sweeps over α beside the cheaper ways to know them."""
