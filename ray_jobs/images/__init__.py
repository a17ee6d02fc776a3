"""Reading images that nobody vouches for: located, fetched, measured and decoded without trusting a byte of them."""
