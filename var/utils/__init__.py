"""Files, images, devices, class names: tools without a model."""
