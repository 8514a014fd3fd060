// Package check compares the files of deploy with the programs that they run: commands,
// settings, ports, health paths and times. It is a module of its own, since reading
// Kubernetes and Compose takes libraries that dialring itself does without.
package check
