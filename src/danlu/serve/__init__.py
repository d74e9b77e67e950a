"""A trained folder as an HTTP service: bounds, micro-batches, the routes, one page, the process around them."""
