"""Exchange of labels with annotation tools: import of exports, pre-labels in their formats."""
