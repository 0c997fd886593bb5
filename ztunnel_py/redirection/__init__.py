# SPDX-License-Identifier: Apache-2.0
"""Leads a pod's traffic to the proxy."""
