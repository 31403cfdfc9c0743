"""The pages of the site that are written from the code: one module for each kind of page."""
