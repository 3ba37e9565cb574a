"""dlcourse.panel"""
