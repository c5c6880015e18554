"""From row groups in the store to columns in memory."""
