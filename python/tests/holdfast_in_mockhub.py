"""A pytest plugin: JupyterHub's own tests with HoldfastProxy where they start configurable-http-proxy."""

from holdfast_up import find_holdfast
from jupyterhub.tests.mocking import MockHub
from ports import free_ports

from jupyterhub_holdfast import HoldfastProxy

make = MockHub.__init__


def make_with_holdfast(self, *args, **kwargs):
    make(self, *args, **kwargs)
    self.proxy_class = HoldfastProxy
    ports = free_ports(4)
    self.config.HoldfastProxy.command = [find_holdfast()]
    self.config.HoldfastProxy.base_port = ports
    self.config.HoldfastProxy.proxy_admin_base = ports + 3


MockHub.__init__ = make_with_holdfast
