// Package e2e holds the tests that run whole clusters: in one process, and of
// real processes that are killed and started again.
package e2e
