//go:build !race

package ring

// How many nodes TestSimulation has, and how often the ring changes.
const simulatedNodes, simulatedChanges = 1000, 100
