"""Program types: what is crafted for each, and what its run tells."""
