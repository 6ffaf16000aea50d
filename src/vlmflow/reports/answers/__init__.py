"""A folder of explained answers: a report each, and a page that lists them."""
