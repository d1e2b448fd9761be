module go-wagi

go 1.21
