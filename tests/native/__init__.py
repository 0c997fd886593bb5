# SPDX-License-Identifier: Apache-2.0
"""The native engine alone: what the reference cannot do, or cannot stand."""
