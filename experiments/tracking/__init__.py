"""The record of runs in MLflow. Nothing outside this folder imports MLflow or sees its objects."""
