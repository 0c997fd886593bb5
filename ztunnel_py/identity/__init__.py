# SPDX-License-Identifier: Apache-2.0
"""Vouches: SPIFFE identities, certificates, trust."""
