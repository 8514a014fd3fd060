package locator

import (
	_ "embed"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
)

// openAPIDocument describes every route of handler; tests compare the two.
//
//go:embed openapi.json
var openAPIDocument []byte

// openAPI: GET /v1/openapi.json
func (l *Locator) openAPI(c echo.Context) error { return httpd.JSON(c.Response(), openAPIDocument) }
