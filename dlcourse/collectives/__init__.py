"""dlcourse.collectives"""
