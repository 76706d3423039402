"""Values of tests: addresses, C types and their Python forms; they know no kernel."""
