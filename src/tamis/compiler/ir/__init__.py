"""The graph, its operators, and what can be said of them without running anything."""
