"""Charts as inline SVG, one a file: values in, markup out. Colours are the page's, by class."""
