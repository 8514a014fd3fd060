//go:build !unix

package wsnode

import "math"

// sessionLimit: this system has no limit of open files to heed.
func sessionLimit() int64 { return math.MaxInt32 }
