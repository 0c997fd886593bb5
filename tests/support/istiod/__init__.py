# SPDX-License-Identifier: Apache-2.0
"""A control plane for tests: strict with its client, and as bad as a test wants."""
