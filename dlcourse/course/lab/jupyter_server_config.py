"""Settings of the server behind Lab: as `dlcourse lab` starts it, on Binder, and under a hub."""

from dlcourse.course import own_network
from dlcourse.course.serve import kernel_settings

config = get_config()  # type: ignore[name-defined]  # noqa: F821
for name, value in kernel_settings().items():
    setattr(config.KernelManager, name, value)
if own_network.wanted():  # socket files lead into it, ports do not
    config.KernelManager.transport = "ipc"
