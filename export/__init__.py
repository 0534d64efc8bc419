"""Any decoder to an engine folder: source → passes → build."""
