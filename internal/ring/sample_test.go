//go:build !race

package ring

// smaller divides the numbers of users of tests.
const smaller = 1
