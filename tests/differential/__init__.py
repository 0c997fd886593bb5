# SPDX-License-Identifier: Apache-2.0
"""Two engines, one script, one outcome."""
