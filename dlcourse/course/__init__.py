"""dlcourse.course"""
