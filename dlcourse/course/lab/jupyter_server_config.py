"""Settings of the server behind Lab, both as `dlcourse lab` starts it and on Binder."""

from dlcourse.course.serve import kernel_settings

for name, value in kernel_settings().items():
    setattr(get_config().KernelManager, name, value)  # type: ignore[name-defined]  # noqa: F821
