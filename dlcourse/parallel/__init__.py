"""dlcourse.parallel"""
