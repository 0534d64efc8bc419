import pytest

from tests.cuda.build import CUDA_BUILD, emulated_build
from tests.cuda.conftest import emulated  # noqa: F401 - a fixture
from tests.tensorrt.host import Host

LIBRARY = "libgear_trt_plugins.so"


@pytest.fixture(scope="session")
def emulated_library():
    """The plugins with kernels on the emulated GPU."""
    return emulated_build() / "libgear_emulated_trt_plugins.so"


@pytest.fixture(scope="session")
def cuda_library():
    """The plugins as `make cuda` builds them."""
    library = CUDA_BUILD / "cuda" / LIBRARY
    if not library.is_file():
        pytest.skip(f"{LIBRARY} was not built: run `make cuda`")
    return library


@pytest.fixture(scope="session")
def emulated_host(emulated_library):
    """A host of plugins that run on the emulated GPU."""
    return Host(emulated_library)


@pytest.fixture(params=["emulated", "cuda"])
def host(request):
    """A host that has loaded the one library, then the other."""
    return Host(request.getfixturevalue(f"{request.param}_library"))
