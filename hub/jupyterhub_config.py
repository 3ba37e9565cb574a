"""JupyterHub 6 for a class on one machine: hub/README.md says how to start it.

Every learner is a Unix user of the machine, whose files, processes, shared memory and socket files
no other may touch: that is what keeps learners apart. Kernels have networks of their own besides.
`tests/test_hub.py` starts this file's hub and tries.
"""

import importlib.util
import os
import pwd
import sys
from pathlib import Path
from urllib.parse import urlencode

from jupyterhub.auth import LocalAuthenticator

sys.path.insert(0, str(Path(__file__).parent))
import class_list

c = get_config()  # type: ignore[name-defined]  # noqa: F821

# ------------------------------------------------------------------------------ what to choose

PLACE = Path(os.environ.get("DLCOURSE_HUB", "/srv/dlcourse"))  # root's: the class, the hub's data
# For one learner, from the measurement in data/classroom.json; README.md says how many fit.
MEMORY, CORES, PROCESSES = "2G", 4.0, 500
IDLE = 3600  # seconds until a kernel that does nothing is ended, and its ranks with it
OWN_NETWORK = True  # kernels reach no internet, and no other user reaches their ranks' ports
# Lessons of your own: a git repository that learners' servers fetch when they start. "" for the
# lessons that are installed, of which each learner gets a copy.
REPOSITORY, BRANCH = os.environ.get("DLCOURSE_HUB_GIT", ""), "main"

# --------------------------------------------------------------------------------- who may enter


class ClassList(LocalAuthenticator):
    """Names and passwords from a file; the Unix user is made at the first login."""

    async def authenticate(self, handler, data):
        name = data["username"]
        if not class_list.is_right(PLACE / "class.csv", name, data["password"]):
            return None
        return class_list.check_name(name)


c.JupyterHub.authenticator_class = ClassList
c.ClassList.allow_all = True  # all who are in the file
c.ClassList.create_system_users = True
c.ClassList.add_user_cmd = ["useradd", "--create-home", "-K", "HOME_MODE=0700", "-s", "/bin/bash"]

# -------------------------------------------------------------------------------------- the hub

c.JupyterHub.bind_url = "http://127.0.0.1:8000"  # what speaks TLS to the world stands before it
c.JupyterHub.db_url = f"sqlite:///{PLACE / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(PLACE / "cookie_secret")
# The one beside this Python is pip's, written in Python; without it, npm's of the same name.
proxy = Path(sys.executable).with_name("configurable-http-proxy")
c.ConfigurableHTTPProxy.command = str(proxy if proxy.exists() else proxy.name)
c.ConfigurableHTTPProxy.pid_file = str(PLACE / "proxy.pid")

# -------------------------------------------------------------------------- what a learner gets


def language(spawner):
    """ko or en, as the file says."""
    learner = class_list.read(PLACE / "class.csv").get(spawner.user.name)
    return learner.lang if learner else "ko"


def home(spawner):
    return pwd.getpwnam(spawner.user.name).pw_dir


c.Spawner.cmd = [sys.executable, "-P", "-m", "dlcourse.course.singleuser"]
c.Spawner.args = [f"--MappingKernelManager.cull_idle_timeout={IDLE}"]
c.Spawner.environment = {
    "DLCOURSE_LANG": language,
    "DLCOURSE_OWN_NETWORK": "1" if OWN_NETWORK else "0",
    "HOME": home,
}
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # thirty may start at once
c.JupyterHub.concurrent_spawn_limit = 10


def fetch(spawner):
    """Start at an nbgitpuller link, which fetches the lessons and then shows them."""
    folder = Path(REPOSITORY).stem
    page = f"lab/tree/{folder}/notebooks/{language(spawner)}/index.md"
    link = {"repo": REPOSITORY, "branch": BRANCH, "targetPath": folder, "urlpath": page}
    spawner.default_url = f"/git-pull?{urlencode(link)}"


if REPOSITORY:
    c.Spawner.pre_spawn_hook = fetch
    c.Spawner.environment["DLCOURSE_COPY"] = "0"

# With systemd every learner has limits and a /tmp of their own. Without, Linux gives memory to who
# asks first, and one learner can take all of it.
if Path("/run/systemd/system").is_dir() and importlib.util.find_spec("systemdspawner"):
    c.JupyterHub.spawner_class = "systemdspawner.SystemdSpawner"
    c.SystemdSpawner.mem_limit, c.SystemdSpawner.cpu_limit = MEMORY, CORES
    c.SystemdSpawner.isolate_tmp = True
    c.SystemdSpawner.disable_user_sudo = True
    c.SystemdSpawner.unit_extra_properties = {"TasksMax": str(PROCESSES), "MemorySwapMax": "0"}
else:
    c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
    print("dlcourse: no systemd or no systemdspawner: learners have no limits", file=sys.stderr)
