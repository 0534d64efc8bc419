"""One file per engine that a routed model is written for."""
