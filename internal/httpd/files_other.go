//go:build !unix

package httpd

import "math"

// ConnectionLimit: this system has no limit of open files to heed.
func ConnectionLimit(int) int64 { return math.MaxInt32 }
