"""The built-in routers, one file each: ``ROUTER`` is the router."""
