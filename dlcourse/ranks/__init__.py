"""dlcourse.ranks"""
