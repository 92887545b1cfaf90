//! The CNI plugin and what it says to the agent
