"""FeatureNet (optional), AffineNet (multi-step), MomentumNet (residual U-Net) and AVSM, the whole."""

from .affine_net import AffineNet
from .avsm import AVSM, Registration, bare_network
from .engine import EngineMomentumNet, MomentumFace, with_momentum_engine
from .feature_net import FeatureNet
from .files import network_from, network_setting
from .inferer import RegistrationInferer
from .momentum_net import MomentumNet
from .weights import initial_network, load_weights, read_state, save_half, weights_hash
