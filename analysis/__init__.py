"""Tables and figures from plain arrays and data frames."""
