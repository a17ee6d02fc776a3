"""VISTA (arXiv 2510.22049): a lifelong history becomes a few summary tokens that candidates attend to."""
