"""Features of many images, in a file, and what simple classifiers make of them."""
