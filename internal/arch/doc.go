// Package arch holds no code: its test keeps the arrows between the packages,
// and the homes of what comes from outside the project.
package arch
