"""The page of a study: its rows compared over seeds."""
