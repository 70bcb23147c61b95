"""The backends that ship. Each lowers a Program to the payload of an artifact."""
